package packet

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func TestReasonNames(t *testing.T) {
	name := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	names, sentences := map[string]Reason{}, map[string]Reason{}
	for r := None; r < NumReasons; r++ {
		if !name.MatchString(r.String()) {
			t.Errorf("reason %d: name %q is not snake_case", r, r)
		}
		if other, twice := names[r.String()]; twice {
			t.Errorf("reasons %d and %d are both called %q", other, r, r)
		}
		names[r.String()] = r

		s := r.Sentence()
		if len(s) < 20 || !strings.HasSuffix(s, ".") || s[0] < 'A' || s[0] > 'Z' {
			t.Errorf("%v: %q is no sentence", r, s)
		}
		if other, twice := sentences[s]; twice {
			t.Errorf("%v and %v have the same sentence", other, r)
		}
		sentences[s] = r
	}
}

// Counters, dashboards and scripts know these names.
func TestReasonsAreStable(t *testing.T) {
	var names []string
	for i, r := range Reasons() {
		if int(r) != i+1 {
			t.Errorf("Reasons()[%d] = %d, want the list in order without None", i, r)
		}
		names = append(names, r.String())
	}
	want := "truncated not_ip bad_ip_header bad_ihl bad_length bad_checksum land source_loopback source_multicast source_invalid " +
		"extension_header routing_header bad_fragment tiny_fragment protocol bad_transport icmp bad_icmp not_vip source_vip " +
		"no_service echo_limit fragment_overlap fragment_unknown source_limit service_limit node_limit challenged challenge_answer unproved no_backend backend_down no_route no_neighbour ttl_expired too_big tx_full " +
		"egress_down internal no_socket no_exit no_daemon denied banned shed loop"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("reasons\n got %s\nwant %s", got, want)
	}
}

func TestReasonJSON(t *testing.T) {
	for r := None; r < NumReasons; r++ {
		in := map[Reason]Reason{r: r}
		text, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		if want := `{"` + r.String() + `":"` + r.String() + `"}`; string(text) != want {
			t.Errorf("%v marshals to %s, want %s", r, text, want)
		}
		var out map[Reason]Reason
		if err := json.Unmarshal(text, &out); err != nil || out[r] != r {
			t.Errorf("%s unmarshals to %v, %v", text, out, err)
		}
	}
	if _, err := json.Marshal(NumReasons); err == nil {
		t.Error("a reason outside the list marshals without an error")
	}
	r := ICMP
	if err := r.UnmarshalText([]byte("gremlins")); err == nil || !strings.Contains(err.Error(), "gremlins") || r != ICMP {
		t.Errorf("unknown name: error %v, reason now %v", err, r)
	}
	if got := NumReasons.String() + NumReasons.Sentence(); !strings.Contains(got, strconv.Itoa(int(NumReasons))) {
		t.Errorf("a reason outside the list prints as %q, without its number", got)
	}
}
