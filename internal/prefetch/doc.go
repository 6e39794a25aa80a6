// Package prefetch has the processor bring lines of tables of words into its cache, so that the misses of a batch overlap.
package prefetch
