"""States: models, hardware, plans and workloads as frozen data, read from TOML."""
