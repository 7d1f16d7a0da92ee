"""The small pure vocabulary between deciding and doing: what a planner sees (`child`, `view`) and says (`plan`)."""
