//go:build linux

// Package cost measures what Sluice takes from a machine: instructions and processor time a packet, and memory a flow, a backend and
// a service.
//
// [Count] says how many machine instructions the worker executes for a packet, and where. It has them counted one by one (package
// internal/singlestep) in a child of this process, which calls [Child]; so the result is the same on a busy machine, and the
// right measure for a change of a few instructions.
package cost
