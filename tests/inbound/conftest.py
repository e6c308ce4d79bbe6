from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.inbound.helpers import House


@pytest.fixture
async def house(tmp_path):
    house = House(tmp_path)
    yield house
    await house.close()


@pytest.fixture
async def houses(tmp_path):
    """Makes owners with other facts than usual."""
    made = []

    def make(**changes):
        made.append(House(tmp_path, **changes))
        return made[-1]

    yield make
    for house in made:
        await house.close()


@pytest.fixture
def executor():
    with ThreadPoolExecutor(2) as executor:
        yield executor
