"""The front door of every ModelDeployment: one URL, and the model's name in the request says who answers."""
