"""How a model becomes the model in production. `python -m pipelines --help` lists the steps."""
