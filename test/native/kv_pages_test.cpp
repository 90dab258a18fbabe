// The bookkeeping of a KV cache's pages, against a model and under random operations.
