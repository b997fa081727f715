"""Words, style and corpus statistics, below everything that uses them."""
