//go:build linux && amd64

package cost

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/bench/report"
)

// The test binary with childArgument and a case is the process whose instructions are counted.
const childArgument = "counted"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == childArgument {
		Child(os.Args[2])
	}
	os.Exit(m.Run())
}

func TestValidate(t *testing.T) {
	for _, c := range selection(report.Full) {
		if err := c.validate(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	good := Case{Mode: "nat", Family: "v4", Mix: "replies", Flows: 1000, Batch: 64, Batches: 2}
	for _, tc := range []struct {
		change func(*Case)
		want   string
	}{
		{func(c *Case) { c.Mode = "dsr" }, `mode "dsr"`},
		{func(c *Case) { c.Mix = "some" }, `mix "some"`},
		{func(c *Case) { c.Mode = "l2" }, "only nat has replies"},
		{func(c *Case) { c.Batch = 65 }, "batch of 65"},
		{func(c *Case) { c.Flows = 1 }, "1 flows"},
		{func(c *Case) { c.Batches = 0 }, "0 batches"},
	} {
		c := good
		tc.change(&c)
		if err := c.validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: error %v, want one with %q", c, err, tc.want)
		}
	}
}

func TestStage(t *testing.T) {
	const path = "github.com/sluice-lb/sluice/forwarder."
	for _, tc := range []struct {
		stack []string // innermost first
		want  string
	}{
		{[]string{path + "(*Worker).Poll"}, "forwarder.(*Worker).Poll"},
		{[]string{path + "x", path + "(*Worker).parse", path + "(*Worker).Poll", "cost.(*player).poll-fm"}, "forwarder.(*Worker).parse"},
		{[]string{path + "(*Worker).stages", path + "(*Worker).Poll"}, "forwarder.(*Worker).stages"},
	} {
		var stack []runtime.Frame
		for _, f := range tc.stack {
			stack = append(stack, runtime.Frame{Function: f})
		}
		if got := stage(stack); got != tc.want {
			t.Errorf("%v: stage %s, want %s", tc.stack, got, tc.want)
		}
	}
}
