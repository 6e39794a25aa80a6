//go:build linux

package singlestep

import "golang.org/x/sys/unix"

// stackPointer is where, at the beginning of a function, the address is that it returns to.
func stackPointer(regs *unix.PtraceRegs) uint64 { return regs.Rsp }
