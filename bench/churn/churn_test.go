//go:build linux

package churn

import (
	"context"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/bench/rig"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/maglev"
)

func load(yaml []byte) (forwarder.Spec, error) {
	cfg, _, err := config.Parse("bench.yaml", yaml)
	if err != nil {
		return forwarder.Spec{}, err
	}
	return control.Spec(cfg, func(string, string) maglev.Admit { return maglev.MakeAdmit(maglev.Up, maglev.All) }), nil
}

// All tables have all values, and the threads may run where they could before.
func TestTables(t *testing.T) {
	var before, after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	o := OptionsFor(report.Smoke)
	o.Flows, o.Backends, o.Duration, o.Load = 10_000, 10, 100*time.Millisecond, load
	tables, err := Tables(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]int{}
	for _, table := range tables {
		rows[table.Name] = len(table.Rows)
		for i := range table.Rows {
			r := &table.Rows[i]
			if len(r.Rounds) != o.Rounds || r.Rounds[0] <= 0 {
				t.Errorf("%s, %s: values %v, want %d above 0", table.Name, r.Key(), r.Rounds, o.Rounds)
			}
			if r.Reference != "" && table.Find(r.Reference) == nil {
				t.Errorf("%s, %s: is compared with %s, which is not there", table.Name, r.Key(), r.Reference)
			}
			if table.Name == "churn-latency" && i > 0 && r.Extra["events"] == 0 {
				t.Errorf("%s: never happened", r.Key())
			}
		}
	}
	if want := map[string]int{"churn-flows": 2, "churn-rebuild": 6, "churn-latency": 5}; !reflect.DeepEqual(rows, want) {
		t.Errorf("rows %v, want %v", rows, want)
	}
	if err := unix.SchedGetaffinity(0, &after); err != nil || after != before {
		t.Errorf("this thread may run on %v, %v; before on %v", after, err, before)
	}
}

// A full table stays full of the newest: each new flow gets a word.
func TestFlood(t *testing.T) {
	f, err := newFlood(10_000)
	if err != nil {
		t.Fatal(err)
	}
	defer f.rig.Close()
	if rate := f.run(context.Background(), time.Millisecond); rate <= 0 {
		t.Errorf("%.0f flows a second", rate)
	}
	free := 0
	for _, w := range f.rig.Words {
		if w == 0 {
			free++
		}
	}
	if free > len(f.rig.Words)/100 {
		t.Errorf("%d of %d words are free", free, len(f.rig.Words))
	}
	if share, err := f.inserted(); err != nil || share < 0.99 {
		t.Errorf("a share of %.4f of all flows got a word, %v", share, err)
	}
}

// A time is that from the arrival to the transmission of the very packet.
func TestLatency(t *testing.T) {
	o := OptionsFor(report.Smoke)
	o.Backends, o.Flows = 10, 10_000
	l, err := newLatency(&o, new(cores))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	began := time.Now()
	seen, err := l.during(context.Background(), event{name: "quiet"}, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if least, most := seen.times.Min(), seen.times.Max(); least < 0 || time.Duration(most) > time.Since(began)+settle {
		t.Errorf("times from %d to %d ns within %v", least, most, time.Since(began))
	}
}

// What is written for the event reload is what the engine has: only the reading differs.
func TestConfiguration(t *testing.T) {
	r, err := rig.New(rig.Options{Family: "v4", Mode: forwarder.IPIP, Services: 3, Backends: 4, Flows: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := r.Spec(70)
	got, err := load(configuration(want))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Services) != 3 {
		t.Fatalf("%d services, want 3", len(got.Services))
	}
	for i := range want.Services {
		g, w := &got.Services[i], &want.Services[i]
		if g.Name != w.Name || g.VIP != w.VIP || g.Mode != w.Mode || !reflect.DeepEqual(g.Ports, w.Ports) || !reflect.DeepEqual(g.Backends, w.Backends) {
			t.Errorf("service %d: %+v, want %+v", i, g, w)
		}
	}
}
