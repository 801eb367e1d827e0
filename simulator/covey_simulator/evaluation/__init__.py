"""``./run evaluate``: scenarios × attacks × fractions × seeds, beside what others would do, against stated goals."""
