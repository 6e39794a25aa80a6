//go:build linux

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-lb/sluice/internal/control"
)

func healthCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "health [SERVICE[/BACKEND]]",
		Short: "Show which backends take flows, since when, and why others do not",
		Long: `Show how the backends of all services stand, or of one, what is wrong first: their phase, since when they are in it,
what share of their flows they get, how long probes take, and why.

    sluice health
    sluice health web

With a backend, tell everything about it: its checks and what they see, who set what by hand, and what happened before.

    sluice health web/web-1

Phases: up; slow_start (a growing share of new flows); going_down and going_up (the last probes say so, but too few yet);
down; unready (its readiness check fails, or it asks for no flows); ejected (its traffic looks bad); unknown (not probed yet);
draining (by hand, or weight 0); maintenance (sluice maintenance).`,
		Args: cobra.MaximumNArgs(1),
	}
	socket := socketFlag(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := parseFilter(args)
		if err != nil {
			return err
		}
		client := control.NewClient(*socket)
		defer client.Close()
		d, err := client.Health(c.Context(), filter)
		switch {
		case err != nil:
			return err
		case asJSON:
			return printJSON(c.OutOrStdout(), d)
		case filter.Backend != "" && len(d.Backends) == 1 && len(d.Services) == 1:
			return printBackendHealth(c.OutOrStdout(), d, time.Now())
		}
		return printHealth(c.OutOrStdout(), d, filter, time.Now())
	}
	return c
}

// parseFilter reads SERVICE or SERVICE/BACKEND, or nothing.
func parseFilter(args []string) (f control.EventFilter, err error) {
	if len(args) == 0 {
		return f, nil
	}
	service, backend, named := strings.Cut(args[0], "/")
	if service == "" || named && backend == "" {
		return f, fmt.Errorf("found %q, expected SERVICE or SERVICE/BACKEND such as web/web-1; sluice status lists them", args[0])
	}
	return control.EventFilter{Service: service, Backend: backend}, nil
}

// troubles are the phases in the order in which they concern who is on call.
var troubles = []control.Phase{
	control.PhaseDown, control.PhaseEjected, control.PhaseUnready, control.PhaseGoingDown, control.PhaseUnknown, control.PhaseGoingUp,
	control.PhaseSlowStart, control.PhaseDraining, control.PhaseMaintenance, control.PhaseUp,
}

// healthLine tells where health comes from.
func healthLine(h *control.HealthStatus) string {
	age := (time.Duration(h.AgeMS) * time.Millisecond).Round(time.Second)
	switch {
	case h.Stale:
		return fmt.Sprintf("health: NO REPORT FOR %s, the last known stays in use; is sluice-healthd running?\n", age)
	case h.Source != "":
		return fmt.Sprintf("health: reported by %s %d ms ago\n", h.Source, h.AgeMS)
	}
	return ""
}

// serviceLines tell in a line how a service stands, and in further ones what is wrong with it as a whole.
func serviceLines(s *control.ServiceHealth) string {
	var counts []string
	total := 0
	for _, p := range troubles {
		if n := s.Phases[p]; n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n, p))
			total += n
		}
	}
	line := fmt.Sprintf("%s  %s  %d backends: %s; %d of %d wanted are alive\n", s.Name, s.VIP, total, strings.Join(counts, ", "), s.Quorum.Have, s.Wanted)
	if s.FailOpen {
		why := "it would leave no backend"
		if s.Quorum.Have > 0 {
			why = fmt.Sprintf("fewer than %d %% are alive", s.PanicThreshold)
		}
		line += fmt.Sprintf("    HEALTH IS IGNORED: %s. All %d wanted backends get flows.\n", why, s.Wanted)
	}
	if s.EjectionsIgnored {
		line += "    EJECTIONS ARE IGNORED: all backends that are alive are ejected.\n"
	}
	if s.ReadinessIgnored {
		line += "    READINESS IS IGNORED: none of the backends that are alive is ready.\n"
	}
	if !s.Quorum.Met {
		line += fmt.Sprintf("    QUORUM LOST: %d backends have to be alive, %d are.\n", s.Quorum.Need, s.Quorum.Have)
	}
	return line
}

// inTrouble says whether a service as a whole has something wrong.
func inTrouble(s *control.ServiceHealth) bool {
	return s.FailOpen || s.EjectionsIgnored || s.ReadinessIgnored || !s.Quorum.Met
}

// printHealth prints the services, and their backends in one table: what is wrong first.
func printHealth(out io.Writer, d control.HealthDetail, f control.EventFilter, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, healthLine(&d.Health))
	trouble := func(s control.ServiceHealth) int {
		if inTrouble(&s) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(d.Services, func(a, b control.ServiceHealth) int { return cmp.Compare(trouble(a), trouble(b)) })
	for i := range d.Services {
		fmt.Fprint(w, serviceLines(&d.Services[i]))
	}
	if f.Service != "" && len(d.Services) == 1 {
		s := &d.Services[0]
		fmt.Fprintf(w, "    check: %s\n", cmp.Or(s.Check, "none"))
		if s.Readiness != "" {
			fmt.Fprintf(w, "    readiness: %s\n", s.Readiness)
		}
		fmt.Fprintf(w, "    passive: %s\n    panic threshold: %d %%, quorum: %d\n", s.Passive, s.PanicThreshold, s.Quorum.Need)
	}
	slices.SortStableFunc(d.Backends, func(a, b control.BackendDetail) int {
		return cmp.Or(cmp.Compare(slices.Index(troubles, a.Phase), slices.Index(troubles, b.Phase)),
			cmp.Compare(a.Service, b.Service), cmp.Compare(a.Backend, b.Backend))
	})
	fmt.Fprint(w, "\nSERVICE\tBACKEND\tPHASE\tSINCE\tSHARE\tFLOWS\tPROBE P50\tP99\tWHY\n")
	for i := range d.Backends {
		b := &d.Backends[i]
		p50, p99 := "-", "-"
		for _, p := range b.Probes {
			if !p.Readiness && p.P50 > 0 {
				p50, p99 = latency(p.P50), latency(p.P99)
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", b.Service, b.Backend, b.Phase, ago(b.Since, now), share(b), b.Flows, p50, p99, b.Why)
	}
	return w.Flush()
}

// share is what share of its new flows a backend gets.
func share(b *control.BackendDetail) string {
	if b.Admit != "up" {
		return "none"
	}
	return fmt.Sprintf("%.0f %%", 100*b.Fraction)
}

// ago tells how long ago something was.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return seconds(max(0, now.Sub(t).Seconds()))
}

// latency is a time in microseconds for a person.
func latency(us uint32) string {
	d := time.Duration(us) * time.Microsecond
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

// printBackendHealth prints everything about the one backend of d.
func printBackendHealth(out io.Writer, d control.HealthDetail, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	b, s := &d.Backends[0], &d.Services[0]
	fmt.Fprint(w, healthLine(&d.Health))
	line := fmt.Sprintf("%s/%s (%s) is %s", b.Service, b.Backend, b.Address, strings.ToUpper(string(b.Phase)))
	if !b.Since.IsZero() {
		line += fmt.Sprintf(" for %s", ago(b.Since, now))
	}
	if b.Why != "" {
		line += ": " + b.Why
	}
	fmt.Fprintf(w, "%s\n\n", line)
	if inTrouble(s) {
		fmt.Fprint(w, serviceLines(s), "\n")
	}
	fmt.Fprintf(w, "takes\t%s\n", takesInWords(b))
	fmt.Fprintf(w, "flows\t%d, weight %d\n", b.Flows, b.Weight)
	fmt.Fprintf(w, "by hand\t%s\n", byHand(b.Hand, now))
	printCheck(w, "check", s.Check, b.Probes, false, now)
	if s.Check != "" {
		state := fmt.Sprintf("%s for %s", b.Health.State, ago(b.Health.Since, now))
		if b.Health.Evidence != "" {
			state += ": " + b.Health.Evidence
		}
		fmt.Fprintf(w, "\t%s\n", state)
	}
	if b.Health.Asks != nil {
		fmt.Fprintf(w, "asks for\t%d %% of its share\n", *b.Health.Asks)
	}
	printCheck(w, "readiness", s.Readiness, b.Probes, true, now)
	if s.Readiness != "" {
		fmt.Fprintf(w, "\t%s\n", cmp.Or(b.Health.Unready, "ready"))
	}
	fmt.Fprintf(w, "passive\t%s\n", s.Passive)
	if b.Health.EjectedMS > 0 {
		fmt.Fprintf(w, "\tejected for another %s: %s\n", seconds(float64(b.Health.EjectedMS)/1000), b.Health.Ejected)
	}
	fmt.Fprintf(w, "service\t%d of %d wanted backends are alive, quorum %d, panic threshold %d %%\n", s.Quorum.Have, s.Wanted, s.Quorum.Need, s.PanicThreshold)
	fmt.Fprintf(w, "switched\t%d times in or out of rotation since the daemon started\n", b.Switches)

	fmt.Fprint(w, "\nWHAT HAPPENED, THE LAST FIRST\n")
	if len(b.History) == 0 {
		fmt.Fprint(w, "nothing since the daemon started\n")
	}
	for i := range b.History {
		e := &b.History[len(b.History)-1-i]
		fmt.Fprintf(w, "%s\t%s ago\t%s\t%s\t%s\n", clock(e.Time), ago(e.Time, now), fromTo(e), e.Cause, e.Evidence)
	}
	return w.Flush()
}

// takesInWords tells what a backend takes.
func takesInWords(b *control.BackendDetail) string {
	switch {
	case b.Admit == "up" && b.Fraction < 1:
		return fmt.Sprintf("%.0f %% of its share of new flows", 100*b.Fraction)
	case b.Admit == "up":
		return "all of its share of new flows"
	case b.Admit == "draining":
		return "no new flows; those that it has go on"
	case b.Admit == "cut":
		return "nothing; flows that it has are ended"
	}
	return "no new flows; what becomes of those that it has is said by on_down"
}

// byHand tells what is set by hand.
func byHand(h *control.HandStatus, now time.Time) string {
	var list []string
	if h.InMaintenance() {
		list = append(list, fmt.Sprintf("in maintenance for %s", ago(h.Maintenance, now)))
	}
	switch {
	case !h.Drained():
	case h.Cut:
		list = append(list, fmt.Sprintf("drained for %s; flows that were left are ended", ago(h.Since, now)))
	case h.Until.IsZero():
		list = append(list, fmt.Sprintf("drained for %s", ago(h.Since, now)))
	default:
		list = append(list, fmt.Sprintf("drained for %s, flows that are left are ended in %s", ago(h.Since, now), seconds(max(0, h.Until.Sub(now).Seconds()))))
	}
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, "; ")
}

// printCheck tells what a check does, and how its probes went.
func printCheck(w io.Writer, name, check string, probes []control.ProbeStats, readiness bool, now time.Time) {
	fmt.Fprintf(w, "%s\t%s\n", name, cmp.Or(check, "none"))
	for _, p := range probes {
		if p.Readiness != readiness {
			continue
		}
		fmt.Fprintf(w, "\t%d probes good, %d bad, the last %s ago\n", p.Good, p.Bad, ago(p.Last, now))
		if p.P50 > 0 {
			fmt.Fprintf(w, "\tlatency: half below %s, 90 %% below %s, 99 %% below %s\n", latency(p.P50), latency(p.P90), latency(p.P99))
		}
		if p.LastError != "" {
			fmt.Fprintf(w, "\tthe last bad one: %s\n", p.LastError)
		}
	}
}
