"""roofplan: plan, price and simulate LLM clusters before anyone rents a GPU."""

__version__ = "0.1.0"
