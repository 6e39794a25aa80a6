//go:build linux

// Package singlestep counts the machine instructions that a piece of this program executes, and where, without hardware counters:
// a child, which runs the same executable, is stepped through the piece by ptrace(2), one instruction at a time.
//
// The result does not depend on how fast or how busy the machine is. It is no time: cache misses, branches and how many
// instructions a core executes at once are not in it. Stepping takes a few microseconds an instruction.
//
// [Run] is the parent's side: it starts the child and returns a [Profile]. The child calls [Serve], then [Tracee.Attach] once it has
// made everything ready, then [Tracee.Count] for each stretch to be counted. From Attach on no other thread of the child runs, so
// that neither the scheduler nor the collector gets between: it must not wait for anything, and collects no garbage.
//
// [Counter] is the hardware's own count of what the calling thread executes, for where there is one; few virtual machines have it.
package singlestep
