//go:build linux

package veth

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/bench/report"
)

// board is one run.
type board struct {
	rig     *Rig
	options Options
	systems []*System
	missing map[*System]string // why a system could not be measured; empty: it can be
}

// round gives each system that works a turn. One that fails gets no further ones, unless it is this program itself.
func (b *board) round(ctx context.Context, timed bool, f func(*System, counter) error) error {
	for _, s := range b.systems {
		if b.missing[s] != "" {
			continue
		}
		err := b.rig.turn(ctx, s, timed, func(c counter) error { return f(s, c) })
		switch {
		case err == nil:
		case ctx.Err() != nil || s == sluice:
			return err
		default:
			b.missing[s] = "failed: " + brief(err)
		}
	}
	return nil
}

// brief is the first line of an error and the last, which of a program's output says most.
func brief(err error) string {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	if len(lines) == 1 {
		return lines[0]
	}
	return lines[0] + " … " + strings.TrimSpace(lines[len(lines)-1])
}

// throughput measures what arrives of as much as can be sent.
func (b *board) throughput(ctx context.Context) (t report.Table, err error) {
	settings := b.options.settings()
	samples := map[*System][][]sample{} // by setting and round
	for range b.options.Rounds {
		err := b.round(ctx, false, func(s *System, c counter) error {
			if samples[s] == nil {
				samples[s] = make([][]sample, len(settings))
			}
			for i, setting := range settings {
				got, err := b.rig.flood(ctx, setting, c, b.options.Duration)
				if err != nil {
					return err
				}
				samples[s][i] = append(samples[s][i], got)
			}
			return nil
		})
		if err != nil {
			return t, err
		}
	}
	t = report.Table{
		Name:  "veth",
		Title: "Packets forwarded on a veth pair in copy mode, of as many as can be sent",
		Rule:  b.rule(), Metric: "packets forwarded", Unit: "Mpps", Higher: true,
		Notes: append([]string{
			"Each system is started for its turn. Before a measurement it is sent a packet of each flow, at a pace that it can take.",
			"loss_percent is what did not arrive of what was sent. All systems are sent more than they can take, and lose the rest.",
			"system_cpu_s_per_M, generator_cpu_s_per_M: seconds for which the second and the first core were busy, with whatever, " +
				"for each million packets that arrived.",
		}, b.notes()...),
	}
	for _, s := range b.systems {
		for i, setting := range settings {
			row := b.row(s, setting)
			if row.Missing == "" {
				var loss, system, generator []float64
				for _, got := range samples[s][i] {
					row.Rounds = append(row.Rounds, got.rate()/1e6)
					loss = append(loss, 100*got.loss())
					millions := float64(max(got.delivered, 1)) / 1e6
					system = append(system, got.system.Seconds()/millions)
					generator = append(generator, got.generator.Seconds()/millions)
				}
				row.Extra = map[string]float64{
					"loss_percent": median(loss), "system_cpu_s_per_M": median(system), "generator_cpu_s_per_M": median(generator),
				}
			}
			t.Rows = append(t.Rows, row)
		}
	}
	return t, nil
}

func median(values []float64) float64 { return report.SpreadOf(values).Median }

// row is the beginning of a system's row in a setting.
func (b *board) row(s *System, setting Setting, more ...report.Label) report.Row {
	row := report.Row{
		Labels: append([]report.Label{
			{Name: "system", Value: s.Name}, {Name: "flows", Value: strconv.Itoa(setting.Flows)}, {Name: "size", Value: setting.Size.Name},
		}, more...),
		Missing: b.missing[s],
	}
	if s.peer != "" && row.Missing == "" {
		for _, peer := range b.systems {
			if peer.Name == s.peer && b.missing[peer] == "" {
				row.Reference = s.peer + strings.TrimPrefix(row.Key(), s.Name)
			}
		}
	}
	return row
}

// rule is what all systems obey.
func (b *board) rule() string {
	c := b.rig.cores
	return fmt.Sprintf("Core %d: the generator, and what its frames cause at the other end of the cable, up to and with the XDP program. "+
		"Core %d: the system's threads and what they send, up to where it is counted; the kernel's forwarding is steered there (RPS). "+
		"Generator and processes have nice %d, and their session goes before others.",
		c.generator, c.system, first)
}

// notes say what the systems are, and which versions of the peers were measured.
func (b *board) notes() []string {
	var notes []string
	for _, s := range b.systems {
		note := s.Name + ": " + s.what
		if s.version != nil && b.missing[s] == "" {
			version, err := s.version()
			if err != nil {
				version = "its version is unknown: " + err.Error()
			}
			note += " (" + version + ")"
		}
		notes = append(notes, note+".")
	}
	return append(notes, fmt.Sprintf("A measurement or trial lasts %v. Sizes are of frames without checksum; imix is 7 of 64 bytes, "+
		"4 of 594, 1 of 1,514.", b.options.Duration.Round(time.Millisecond)))
}
