"""Networks of papers that no library has."""
