"""What language models generate: decoding, likelihood and the metrics of texts."""
