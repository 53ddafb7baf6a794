"""ReferDINO between its graphs: what the host computes (referdino-model 2, 5.1, 7)."""
