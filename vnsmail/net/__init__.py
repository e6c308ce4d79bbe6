"""Virtual hosts as network facts: names, plan, and what makes the plan true."""
