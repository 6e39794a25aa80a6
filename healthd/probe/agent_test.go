package probe

import (
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/config"
)

func TestAgentSays(t *testing.T) {
	for _, c := range []struct {
		line     string
		good     bool
		asks     int
		evidence string
	}{
		{"up\n", true, -1, "agent says up"},
		{"READY", true, -1, "agent says up"},
		{"75%\r\n", true, 75, "agent asks for 75%"},
		{"up 75%", true, 75, "agent asks for 75%"},
		{"up,\t0%\n", true, 0, "agent asks for 0%"},
		{"100%", true, 100, "agent asks for 100%"},
		{"drain", true, 0, "agent asks for 0%"},
		{"maint 50%", true, 0, "agent asks for 0%"},
		{"ready drain", true, 0, "agent asks for 0%"},
		{"up # all well\n", true, -1, "agent says up: all well"},
		{"down\n", false, -1, "agent says down"},
		{"down#disk full\n", false, -1, "agent says down: disk full"},
		{"fail 80% # up again soon", false, -1, "agent says fail: up again soon"},
		{"failed", false, -1, "agent says failed"},
		{"stopped", false, -1, "agent says stopped"},
		{"up down", false, -1, "agent says down"},
		{"150%\n", true, -1, `agent says up, "150%" ignored`},
		{"up maxconn:30", true, -1, `agent says up, "maxconn:30" ignored`},
		{"75\n", false, -1, `the agent's line has no word that is known: "75\n"`},
		{"HTTP/1.1 200 OK", false, -1, "no word that is known"},
		{"# up", false, -1, "no word that is known"},
		{"\n", false, -1, "no word that is known"},
	} {
		got, err := agentSays(c.line)
		if err != nil {
			got = outcome{err.Error(), -1}
		}
		if (err == nil) != c.good || got.asks != c.asks || !strings.Contains(got.evidence, c.evidence) {
			t.Errorf("%q: %v, asks for %d, %q; want %v, %d, %q", c.line, err == nil, got.asks, got.evidence, c.good, c.asks, c.evidence)
		}
	}
}

func TestAgent(t *testing.T) {
	p := New(Options{})
	greets := func(text string) func(net.Conn) { return func(c net.Conn) { _, _ = c.Write([]byte(text)); silent(c) } }
	for _, c := range []struct {
		name     string
		server   func(net.Conn)
		send     string
		want     verdict
		evidence string
		asks     int
	}{
		{"up", greets("up 40%\n"), "", good, "asks for 40%", 40},
		{"a line without an end, closed", func(c net.Conn) { _, _ = c.Write([]byte("drain")) }, "", good, "asks for 0%", 0},
		{"a line without an end, held", greets("up"), "", failing, `the agent's line does not end: "up"`, -1},
		{"no line", closesAtOnce, "", failing, "without a word", -1},
		{"asked", answer("down # because\n"), "state\n", failing, "agent says down: because", -1},
		{"only the first line", greets("up\ndown\n"), "", good, "agent says up", -1},
		{"a long line", greets("up " + strings.Repeat("x", maxAgentLine) + "\n"), "", good, "agent says up", -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			check := config.Check{Type: config.CheckAgent, Send: c.send}
			if c.want == failing {
				check.Timeout = config.Duration(quick)
			}
			if r := expect(t, p, target(serve(t, c.server), check), c.want, c.evidence); r.Asks != c.asks {
				t.Errorf("asks for %d, want %d", r.Asks, c.asks)
			}
		})
	}
}

// Whatever an agent says, the share it asks for is one, and there are words for it.
func FuzzAgentSays(f *testing.F) {
	for _, s := range []string{"up 75%\n", "down#x", "150%", "maxconn:3,ready", "50%%", "%", "\xff # \x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got, err := agentSays(line)
		switch {
		case err != nil && err.Error() == "", err == nil && got.evidence == "":
			t.Errorf("%q: no words", line)
		case got.asks < -1 || got.asks > 100:
			t.Errorf("%q asks for %d", line, got.asks)
		}
		if again, err2 := agentSays(line + "\ndown"); err == nil && !strings.Contains(line, "#") && err2 == nil {
			t.Errorf("%q and down is good: %+v", line, again)
		}
	})
}

func FuzzPercent(f *testing.F) {
	for _, s := range []string{"75", "75%", " 5 ", "101", "-1", "1e2", "007", "٣"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, ok := percent(s)
		want, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(s), "%"), 10, 64)
		if ok && (err != nil || uint64(n) != want || n > 100) {
			t.Errorf("%q is read as %d", s, n)
		}
		if !ok && err == nil && want <= 100 && len(strings.TrimSpace(s)) <= 3 {
			t.Errorf("%q is refused", s)
		}
	})
}
