//go:build linux

// Package churn measures what change costs: how many new flows a worker takes when the flow table is full, how long lookup tables
// take to be made, and how long packets wait in the worker while something happens beside it.
//
// All of it runs on the memory NIC, without network and root. Functions may be called from any goroutine, one at a time: they
// bind threads of the process to cores, and let them go again.
package churn
