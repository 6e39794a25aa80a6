//go:build linux

// Package memnic measures the real worker on the in-process rings of package xsk: what a packet costs, in nanoseconds, by the way
// it is forwarded, the number of flows, what the packets are, and how many are there at a time.
//
// A [Case] is one such setting. [Measure] takes all cases in turns, round after round, so that their ratios hold on a machine whose
// speed changes; nanoseconds are those of one machine at one time. Beside the worker stand a floor, a bare swap of MAC addresses
// on the same rings and frames, and a ceiling, reads of random cache lines of the flow table itself.
//
// # How it is measured
//
// A memory NIC has so many frames in circulation as a NIC's queue has (Options.Frames). Generator and sink run on the worker's
// thread, between the timed bursts; a burst is half of the frames, the other half next time. So the clock is read twice for some
// hundred packets, whatever the batch, and what that costs is subtracted. Within a burst a port hands out as many frames at a time
// as the batch of the case says. What was sent is reclaimed, and the fill ring refilled, once at the beginning of the burst, at
// the expense of all its packets.
//
// The worker runs by Worker.Poll, through all stages. Not in it is what Run does beside, once a turn: it reads the clock, and
// stores its heartbeat.
//
// All cases of a number of flows and family share one engine and flow table; the service's mode, its limits and its defence are
// changed by Apply between them, whereby flows keep their words. The engine's clock stands still but while known flows are
// forwarded, so that as large a share of their packets renews a word as would with nothing but them. New flows are forgotten
// after each burst: the table stays half full. (Mix [Evict] is the other case: it is full, and each insert takes another's word.)
//
// Memory of a flow table is given back when a measurement ends. Functions may be called from any goroutine, one at a time.
package memnic
