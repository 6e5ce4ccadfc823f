"""Building blocks of reducers: similarity, selection, segments, clusters, trees, transport, compaction, pooling."""
