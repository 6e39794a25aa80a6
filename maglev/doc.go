// Package maglev chooses a backend for a flow: the same on every node of a group, with no state, and without moving
// other flows when a backend comes, goes, drains or starts slowly.
//
// There are three parts. A Table maps each of its entries to a backend and depends on the names of the backends alone;
// it is populated as in Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
// section 3.4. An Admit word per backend says what the backend takes now. A Pool brings both together: a flow's hash
// gives up to eight candidates from the table, and the first that admits the flow gets it. Health is not in the table,
// so a health change is one atomic store to an admit word; the table is rebuilt only when the list of backends changes.
//
// # Who owns what
//
// Tables and pools are immutable once built; any number of goroutines may use them. Admit words belong to the caller,
// who writes them atomically from one goroutine; choosing only reads them. Nothing here allocates, locks or waits
// except Build.
//
// # What it costs
//
// A Table holds two bytes an entry: 128 KiB for DefaultSize, which stays in a core's second-level cache. A choice is
// usually one Mix (two multiplications), one load from the table, one of the slot and one of the admit word; each
// candidate that refuses adds as much. Only if all eight refuse is the list of backends searched.
//
// # Why go-maglev
//
// The dgryski/go-maglev module populates the table: it is the paper's algorithm, takes some milliseconds, and is needed
// only when the configuration changes. What it does not do is guarded here. It never returns for an empty list, for
// more names than entries, or for a size that is not prime, since its permutations then miss entries: Build refuses
// all three. Its result depends on the order of the names: Build sorts them. Its lookup takes a 64-bit remainder and
// reads eight bytes an entry: only the populated table is taken from it, in a compact form.
package maglev
