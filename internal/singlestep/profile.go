//go:build linux

package singlestep

import (
	"runtime"
	"slices"
)

// Profile is what was executed. Addresses are the child's own; methods give them as they are in this process.
type Profile struct {
	Calls  int // of Tracee.Count
	offset uintptr
	root   *node // of counted
	places map[uint64]place
}

// place is what there is at an address.
type place uint8

const (
	inside   place = iota // an instruction of a function of the program
	entrance              // its first
	beyond                // something else: what the kernel maps into each process
)

// node is a function as called by way of its parents.
type node struct {
	parent   *node
	back     uint64 // where it returns to
	children map[[2]uint64]*node
	counts   map[uint64]uint64 // how often each instruction was executed, by address
}

// call returns the node of a function that begins at entry and returns to back.
func (n *node) call(entry, back uint64) *node {
	key := [2]uint64{entry, back}
	c := n.children[key]
	if c == nil {
		c = &node{parent: n, back: back, counts: map[uint64]uint64{}}
		if n.children == nil {
			n.children = map[[2]uint64]*node{}
		}
		n.children[key] = c
	}
	return c
}

// place says what there is at pc, and remembers it.
func (p *Profile) place(pc uint64) place {
	is, ok := p.places[pc]
	if !ok {
		here := uintptr(pc) + p.offset
		switch f := runtime.FuncForPC(here); {
		case f == nil:
			is = beyond
		case f.Entry() == here:
			is = entrance
		}
		p.places[pc] = is
	}
	return is
}

// System stands for the function of an instruction outside the program, in the kernel's page of system calls (vdso(7)). Of a loop
// there only the first turn is counted.
const System = "[vdso]"

// Instruction is one that was executed, in all calls by the same way.
type Instruction struct {
	PC    uintptr
	Count uint64
	// Stack is where it stands, from the innermost function on, those that were inlined included.
	Stack []runtime.Frame
}

// Instructions returns all that were executed.
func (p *Profile) Instructions() []Instruction {
	var out []Instruction
	p.walk(p.root, nil, &out)
	return out
}

func (p *Profile) walk(n *node, callers []uintptr, out *[]Instruction) {
	for pc, count := range n.counts {
		in := Instruction{PC: uintptr(pc) + p.offset, Count: count}
		if p.place(pc) == beyond {
			in.Stack = []runtime.Frame{{PC: in.PC, Function: System}}
		}
		// Frames are asked for by return addresses, which lie behind the instruction; and of the last one the functions into which it
		// was inlined are left out, hence the address of nothing.
		frames := runtime.CallersFrames(append(append([]uintptr{in.PC + 1}, callers...), 0))
		for more := true; more; {
			var f runtime.Frame
			if f, more = frames.Next(); f.Function != "" {
				in.Stack = append(in.Stack, f)
			}
		}
		*out = append(*out, in)
	}
	for _, c := range n.children {
		if n.parent == nil { // counted itself is not part of the stack
			p.walk(c, nil, out)
			continue
		}
		p.walk(c, append([]uintptr{uintptr(c.back) + p.offset}, slices.Clone(callers)...), out)
	}
}

// Total is how many instructions were executed in all calls.
func (p *Profile) Total() uint64 { return p.root.total() }

func (n *node) total() (sum uint64) {
	for _, count := range n.counts {
		sum += count
	}
	for _, c := range n.children {
		sum += c.total()
	}
	return sum
}
