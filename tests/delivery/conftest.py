import asyncio

import uvloop


def pytest_asyncio_loop_factories(config, item):
    """Workers run on uvloop; where bytes pass, the standard loop must do as well."""
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    if item.path.stem == "test_connection":
        return loops
    name = "uvloop" if item.path.stem == "test_agent" else "asyncio"
    return {name: loops[name]}
