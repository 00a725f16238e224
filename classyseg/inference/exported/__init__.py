"""Files of exported models: what they tell of themselves, the table of formats, and how they run as a `Predictor`."""
