"""Words of the domain: events, results, rings, plugin kinds. Needs numpy and pydantic only."""
