"""One file per program that reads what a plan emits."""
