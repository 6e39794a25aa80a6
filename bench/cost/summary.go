//go:build linux

package cost

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/sluice-lb/sluice/internal/singlestep"
)

// Instructions is what a case executed. Numbers are instructions a packet. Lists begin with the most expensive.
type Instructions struct {
	Case
	PerPacket float64 `json:"instructions_per_packet"`
	// Counter is what the machine's own counter counted for the same; 0 if it has none for this program.
	Counter   float64 `json:"hardware_instructions_per_packet,omitempty"`
	Stages    []Share `json:"stages"`    // what Poll and its stages call, with everything below
	Functions []Share `json:"functions"` // without what they call; a function that is inlined is one of its own
	Lines     []Share `json:"lines"`     // of source
}

// Share is a part of the instructions.
type Share struct {
	Name      string  `json:"name"`
	PerPacket float64 `json:"instructions_per_packet"`
	// Function is where a line stands, and by which functions it was reached, innermost first.
	Function string `json:"function,omitempty"`
}

// Functions that do nothing but call the stages.
var frameworks = []string{
	"cost.(*player).poll-fm", "cost.(*player).poll", "rig.(*Rig).Swap-fm", "rig.(*Rig).Swap",
	"forwarder.(*Worker).Poll", "forwarder.(*Worker).stages",
}

func summarize(c Case, p *singlestep.Profile) *Instructions {
	stages, functions, lines := map[string]uint64{}, map[string]uint64{}, map[string]uint64{}
	within := map[string]string{}
	for _, in := range p.Instructions() {
		inner := in.Stack[0]
		stages[stage(in.Stack)] += in.Count
		functions[short(inner.Function)] += in.Count
		line := short(inner.Function)
		if inner.File != "" {
			line = fmt.Sprintf("%s/%s:%d", filepath.Base(filepath.Dir(inner.File)), filepath.Base(inner.File), inner.Line)
		}
		lines[line] += in.Count
		within[line] = short(inner.Function)
	}
	packets := float64(c.Batch * p.Calls)
	shares := func(counts map[string]uint64) (out []Share) {
		for _, name := range slices.Sorted(maps.Keys(counts)) {
			out = append(out, Share{Name: name, PerPacket: float64(counts[name]) / packets})
		}
		slices.SortStableFunc(out, func(a, b Share) int { return cmp.Compare(b.PerPacket, a.PerPacket) })
		return out
	}
	out := &Instructions{
		Case: c, PerPacket: float64(p.Total()) / packets, Stages: shares(stages), Functions: shares(functions), Lines: shares(lines),
	}
	for i := range out.Lines {
		out.Lines[i].Function = within[out.Lines[i].Name]
	}
	return out
}

// stage is the outermost function of a stack that does something itself.
func stage(stack []runtime.Frame) string {
	name := ""
	for _, f := range slices.Backward(stack) {
		name = short(f.Function)
		if !slices.Contains(frameworks, name) {
			break
		}
	}
	return name
}

// short is a function's name without the path of its package.
func short(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }
