package control

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder"
)

func (d *daemon) Drain(service, backend string, timeout time.Duration) (Backend, error) {
	return d.backend(service, backend, d.Book.Drain(service, backend, timeout))
}

func (d *daemon) Undrain(service, backend string) (Backend, error) {
	return d.backend(service, backend, d.Book.Undrain(service, backend))
}

func (d *daemon) Maintenance(service, backend string, on bool) (Backend, error) {
	return d.backend(service, backend, d.Book.Maintenance(service, backend, on))
}

func (d *daemon) Health(f EventFilter) (HealthDetail, error) { return d.Detail(f) }

func (d *daemon) Signals(ctx context.Context, send func(SignalsLine) error) error {
	return FollowSignals(ctx, &d.reader, send)
}

// backend returns how a backend stands, with 7 flows.
func (d *daemon) backend(service, backend string, err error) (Backend, error) {
	if err != nil {
		return Backend{}, err
	}
	s := Status{Traffic: NewTraffic(forwarder.Stats{Services: []forwarder.ServiceStats{
		{Name: service, Backends: []forwarder.BackendStats{{Name: backend, Flows: 7}}},
	}})}
	d.Fill(&s)
	return s.Traffic.Services[0].Backends[0], nil
}

func (d *daemon) Flows(f FlowFilter) (FlowsReport, error) {
	d.asked = append(d.asked, f)
	if f.Service == "wbe" {
		return FlowsReport{}, notFound("there is no service %q", f.Service)
	}
	return FlowsReport{
		WalkedWords: 1 << 20, TookMS: 12.5, States: FlowStates{1, 2, 3}, Ages: []AgeBucket{{UpToSeconds: 60, Flows: 4}, {Flows: 2}},
		Services: []FlowsOfService{{"web", 6, []FlowsOfBackend{
			{Backend: "a", Address: "10.0.0.1", Takes: "up", Flows: 6, FlowStates: FlowStates{1, 2, 3}, LongestIdleSeconds: 70.5, Ages: []uint64{4, 2}},
		}}},
	}, nil
}

func (d *daemon) Flow(q FlowQuery) (FlowReport, error) {
	d.asked = append(d.asked, q)
	return d.flow, nil
}

func (d *daemon) TopSources(_ string, n int) TopReport {
	d.asked = append(d.asked, n)
	return TopReport{60, []TopSource{{"198.51.100.7", 1000, 3, 0.25}, {"2001:db8:1:2::/64", 5, 5, 0.001}}}
}

func TestDrainOverTheWire(t *testing.T) {
	d, _, c := serve(t)
	r, err := c.Drain(t.Context(), "web", "b", 5*time.Minute)
	h := r.Backend.Hand
	if err != nil || r.Service != "web" || r.Backend.Name != "b" || r.Backend.Flows != 7 || r.Backend.Weight != 100 || h == nil || h.Cut {
		t.Fatalf("got %+v, %v", r, err)
	}
	if left := time.Until(h.Until); left < 4*time.Minute || left > 5*time.Minute {
		t.Errorf("%v are left", left)
	}
	if r, err = c.Drain(t.Context(), "web", "b", 0); err != nil || !r.Backend.Hand.Until.IsZero() || !r.Backend.Hand.Since.Equal(h.Since) {
		t.Errorf("without a timeout: %+v, %v", r, err)
	}
	if r, err = c.Undrain(t.Context(), "web", "b"); err != nil || r.Backend.Hand != nil || d.shares() != "a~ b~" {
		t.Errorf("undrained: %+v, %v, %s", r, err, d.shares())
	}
	var failed *APIError
	if _, err = c.Drain(t.Context(), "web", "z", 0); !errors.As(err, &failed) || failed.Code != 404 || failed.Message != `service web has no backend "z"; it has a, b` {
		t.Errorf("got %v", err)
	}
	if _, err = c.Drain(t.Context(), "web", "a", -time.Second); !errors.As(err, &failed) || failed.Code != 400 {
		t.Errorf("got %v", err)
	}
}

func TestFlowsOverTheWire(t *testing.T) {
	d, _, c := serve(t)
	none, all := FlowFilter{}, FlowFilter{Service: "web", Backend: "a&b", State: "closing"}
	want, _ := d.Flows(none)
	for _, f := range []FlowFilter{none, all} {
		if got, err := c.Flows(t.Context(), f); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%v: got %+v, %v", f, got, err)
		}
	}
	var failed *APIError
	if _, err := c.Flows(t.Context(), FlowFilter{Service: "wbe"}); !errors.As(err, &failed) || failed.Code != 404 {
		t.Errorf("got %v", err)
	}
	if wanted := []any{none, none, all, FlowFilter{Service: "wbe"}}; !reflect.DeepEqual(d.asked, wanted) {
		t.Errorf("asked %v, want %v", d.asked, wanted)
	}
}

func TestFlowOverTheWire(t *testing.T) {
	d, _, c := serve(t)
	addr := netip.MustParseAddrPort
	for _, row := range []struct{ query, want FlowQuery }{
		{FlowQuery{addr("198.51.100.7:4711"), addr("192.0.2.10:80"), "tcp"}, FlowQuery{addr("198.51.100.7:4711"), addr("192.0.2.10:80"), "tcp"}},
		{FlowQuery{addr("[2001:db8::7]:1"), addr("[2001:db8::10]:53"), "udp"}, FlowQuery{addr("[2001:db8::7]:1"), addr("[2001:db8::10]:53"), "udp"}},
		{FlowQuery{addr("[::ffff:198.51.100.7]:1"), addr("192.0.2.10:80"), "tcp"}, FlowQuery{addr("198.51.100.7:1"), addr("192.0.2.10:80"), "tcp"}},
	} {
		for _, want := range []FlowReport{
			{Found: true, Service: "web", Backend: "a", Address: "10.0.0.1", State: "established", IdleSeconds: 1.5, ExpiresInSeconds: 7000, Slot: 3, Line: 12345},
			{Service: "web", Line: 99, Opens: &FlowTarget{"a", "10.0.0.1"}, Continues: &FlowTarget{"b", "10.0.0.2"}},
			{},
		} {
			d.flow, d.asked = want, nil
			if got, err := c.Flow(t.Context(), row.query); err != nil || !reflect.DeepEqual(got, want) || d.asked[0] != row.want {
				t.Errorf("%v: got %+v, %v; asked %v", row.query, got, err, d.asked)
			}
		}
	}
}

func TestTopSourcesOverTheWire(t *testing.T) {
	d, s, c := serve(t)
	got, err := c.TopSources(t.Context(), "flows", 5)
	if err != nil || len(got.Sources) != 2 || got.Sources[1] != (TopSource{"2001:db8:1:2::/64", 5, 5, 0.001}) || got.WindowSeconds != 60 {
		t.Errorf("got %+v, %v", got, err)
	}
	if w := request(s, "GET", "/v1/flows/top", ""); w.Code != 200 {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	if want := []any{5, 20}; !reflect.DeepEqual(d.asked, want) {
		t.Errorf("asked %v, want %v", d.asked, want)
	}
}

// curl needs no more than what the documentation says.
func TestDrainWithoutClient(t *testing.T) {
	d, s, _ := serve(t)
	for _, body := range []string{`{"service":"web","backend":"a","timeout":""}`, `{"service":"web","backend":"a"}`, `{"backend":"a","service":"web","timeout":"1h30m"}`} {
		if w := request(s, "POST", "/v1/drain", body); w.Code != 200 || handOf(d.Book, "a") == nil {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
}
