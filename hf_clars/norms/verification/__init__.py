"""`verify_norms`: what `PerSampleNorms` measures, held against passes over single samples."""
