"""Mega-CE²: end, edge and cloud; what is sent between them, when, and how long it takes."""
