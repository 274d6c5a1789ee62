"""Who may ask, how much, and what was used: API keys, quotas, the record of use."""
