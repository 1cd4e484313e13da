"""The FlashInfer side: from live runners to keys, and the AutoTuner that works with records."""
