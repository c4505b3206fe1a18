"""Networks of papers that no library provides, and modules around networks."""
