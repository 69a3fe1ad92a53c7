"""What the controller is made of: talking to agents, the checks of both hosts, the plan, and the look at all hosts."""
