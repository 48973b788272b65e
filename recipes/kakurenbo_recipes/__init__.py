"""Training programs around kakurenbo_lightning: data, models, the trainer `kakurenbo-train` and reports."""
