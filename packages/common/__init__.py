"""The harness under both methods: ragged data, configs, training, metrics, statistics, studies, reports."""
