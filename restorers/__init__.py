"""Feed-forward restorers: networks, degradations that train them, export and the serving runtime."""
