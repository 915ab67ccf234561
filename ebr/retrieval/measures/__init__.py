"""How good a ranking is: metrics, their certainty, and what stands behind them."""
