"""How long, how many: clocks and counters behind small Protocols."""
