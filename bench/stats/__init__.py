"""Statistics on numbers: noise, repeats, pairs, trends, power. Only numpy and scipy."""
