package steer

import (
	"testing"

	"github.com/cilium/ebpf/asm"
)

// A chain of functions has 512 bytes of stack in all. Kernels before 6.8 round each one's up to 32 bytes, newer ones to 16
// (check_max_stack_depth in kernel/bpf/verifier.c), so that what loads on this kernel might not on those.
func TestStack(t *testing.T) {
	spec, err := loadSteer()
	if err != nil {
		t.Fatal(err)
	}
	own, calls := map[string]int{}, map[string][]string{}
	function := ""
	copies := map[asm.Register]bool{} // of the frame pointer
	for _, ins := range spec.Programs["sluice_steer"].Instructions {
		if s := ins.Symbol(); s != "" {
			function, copies = s, map[asm.Register]bool{}
			own[function] = max(own[function], 1)
		}
		op := ins.OpCode
		switch {
		case ins.IsFunctionCall():
			calls[function] = append(calls[function], ins.Reference())
		case op.Class().IsLoad() && ins.Src == asm.R10:
			own[function] = max(own[function], -int(ins.Offset))
		case op.Class().IsStore() && ins.Dst == asm.R10:
			own[function] = max(own[function], -int(ins.Offset))
		case op.Class().IsALU() && op.ALUOp() == asm.Mov:
			copies[ins.Dst] = op.Source() == asm.RegSource && ins.Src == asm.R10
		case op.Class().IsALU() && op.ALUOp() == asm.Add && op.Source() == asm.ImmSource && copies[ins.Dst]:
			own[function] = max(own[function], -int(ins.Constant))
		}
	}
	if len(own) < 5 || own["sluice_steer"] < 64 {
		t.Fatalf("stack of functions: %v; this test does not see all", own)
	}
	var chain func(string) (int, []string)
	chain = func(f string) (deepest int, path []string) {
		for _, g := range calls[f] {
			if d, p := chain(g); d > deepest {
				deepest, path = d, p
			}
		}
		return deepest + (own[f]+31)/32*32, append([]string{f}, path...)
	}
	deepest, path := chain("sluice_steer")
	t.Logf("%d bytes of stack by %v; each: %v", deepest, path, own)
	if deepest > 512 {
		t.Errorf("%d bytes of stack by %v; there are 512", deepest, path)
	}
}
