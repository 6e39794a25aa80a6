package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// with is the valid file with further fields of its service, on line 9.
func with(fields string) string {
	return strings.Replace(valid, "forward: ipip\n", "forward: ipip\n    "+fields+"\n", 1)
}

// udp is a file with UDP in place of TCP.
func udp(file string) string { return strings.Replace(file, "protocol: tcp", "protocol: udp", 1) }

// weighing is a file with another weight for each backend.
func weighing(file string, a, b any) string {
	return strings.NewReplacer("- name: a\n", fmt.Sprintf("- name: a\n        weight: %v\n", a),
		"- name: b\n", fmt.Sprintf("- name: b\n        weight: %v\n", b)).Replace(file)
}

var flowRefusals = []refusal{
	{"source_prefix of maglev", valid, with("source_prefix: 24"), []string{
		"f:9:20: services[0].source_prefix: found 24 with scheduler: maglev, expected none (only scheduler: source goes by the client's address)",
	}},
	{"source_prefix too long for IPv4", valid, with("scheduler: source\n    source_prefix: 33"), []string{
		"f:10:20: services[0].source_prefix: found 33, expected a number from 1 to 32",
	}},
	{"source_prefix zero", valid, with("scheduler: source\n    source_prefix: 0"), []string{
		"f:10:20: services[0].source_prefix: found 0, expected a number from 1 to 32",
	}},
	{"source_prefix too long for IPv6", valid, strings.Replace(with("scheduler: source\n    source_prefix: 129"), "192.0.2.10", "2001:db8::10", 1), []string{
		"f:10:20: services[0].source_prefix: found 129, expected a number from 1 to 128",
	}},
	{"source_prefix of a scheduler that is none", valid, with("scheduler: sourc\n    source_prefix: 24"), []string{
		"f:9:16: services[0].scheduler: found \"sourc\", expected maglev, wrr, least-conn, p2c or source (did you mean source?)",
	}},
	{"table_size not prime", valid, with("table_size: 65536"), []string{
		"f:9:17: services[0].table_size: found 65536, expected a prime number (the next one is 65537)",
	}},
	{"table_size a square", valid, with("table_size: 63001"), []string{ // 251 × 251
		"f:9:17: services[0].table_size: found 63001, expected a prime number (the next one is 63029)",
	}},
	{"table_size too small", valid, with("table_size: 241"), []string{
		"f:9:17: services[0].table_size: found 241, expected a number from 251 to 16777213",
	}},
	{"table_size too large", valid, with("table_size: 16777259"), []string{
		"f:9:17: services[0].table_size: found 16777259, expected a number from 251 to 16777213",
	}},
	{"table_size a word", valid, with("table_size: large"), []string{
		"f:9:17: services[0].table_size: found \"large\", expected a number from 251 to 16777213",
	}},
	{"table_size less than backends", valid, backends("table_size: 251", 252), []string{
		"f:9:17: services[0].table_size: found 251 entries for 252 backends, expected at least as many as backends (25219 gives each of them 100)",
	}},
	{"slow_start too long", valid, with("slow_start: 61m"), []string{
		"f:9:17: services[0].slow_start: found \"61m\", expected a duration from 0s to 1h",
	}},
	{"slow_start without unit", valid, with("slow_start: 30"), []string{
		"f:9:17: services[0].slow_start: found 30, expected a duration such as 500ms, 2s or 1m (with a unit: 30s)",
	}},
	{"on_down", valid, with("on_down: resett"), []string{
		"f:9:14: services[0].on_down: found \"resett\", expected keep, rehash or reset (did you mean reset?)",
	}},
	{"on_down: reset of UDP", valid, udp(with("on_down: reset")), []string{
		"f:9:14: services[0].on_down: found reset with udp, expected keep or rehash (only TCP has a RST)",
	}},
	{"on_down: keep without a flow table", valid, udp(with("flow_table: off\n    on_down: keep")), []string{
		"f:10:14: services[0].on_down: found keep with flow_table: off, expected rehash (without words in the flow table, nothing is known of a backend's flows)",
	}},
	{"on_down: reset without a flow table", valid, with("flow_table: off\n    on_down: reset"), []string{
		"f:10:14: services[0].on_down: found reset with flow_table: off, expected rehash (without words in the flow table, nothing is known of a backend's flows)",
	}},
	{"flow_table", valid, with("flow_table: none"), []string{
		"f:9:17: services[0].flow_table: found \"none\", expected on or off",
	}},
	// Nothing is said about what would follow from a flow_table that is off.
	{"flow_table refused", valid, with("flow_table: 0\n    scheduler: wrr\n    on_down: keep\n    lifetimes: {new: 5s}"), []string{
		"f:9:17: services[0].flow_table: found 0, expected on or off",
	}},
	{"wrr without a flow table", valid, udp(with("scheduler: wrr\n    flow_table: off")), []string{
		"f:10:17: services[0].flow_table: found off with scheduler: wrr, expected on (without a word in the flow table, the next packet of a flow would go to another backend)",
	}},
	{"least-conn without a flow table", valid, udp(with("scheduler: least-conn\n    flow_table: off")), []string{
		"f:10:17: services[0].flow_table: found off with scheduler: least-conn, expected on (without a word in the flow table, the next packet of a flow would go to another backend)",
	}},
	{"p2c without a flow table", valid, with("scheduler: p2c\n    flow_table: off"), []string{
		"f:10:17: services[0].flow_table: found off with scheduler: p2c, expected on (without a word in the flow table, the next packet of a flow would go to another backend)",
	}},
	{"lifetimes without a flow table", valid, udp(with("flow_table: off\n    lifetimes: {new: 10s}")), []string{
		"f:10:16: services[0].lifetimes: found a mapping with flow_table: off, expected none (flows have no words there that could live)",
	}},
	{"lifetimes too short and too long", valid, with("lifetimes: {new: 4999ms, established: 2h1s, closing: 0s}"), []string{
		"f:9:22: services[0].lifetimes.new: found \"4999ms\", expected a duration from 5s to 2h",
		"f:9:43: services[0].lifetimes.established: found \"2h1s\", expected a duration from 5s to 2h",
		"f:9:58: services[0].lifetimes.closing: found \"0s\", expected a duration from 5s to 2h",
	}},
	{"lifetime of closing UDP flows", valid, udp(with("lifetimes: {closing: 30s}")), []string{
		"f:9:26: services[0].lifetimes.closing: found \"30s\" with udp, expected none (UDP has no packet that closes a flow)",
	}},
	{"lifetimes a duration", valid, with("lifetimes: 1h"), []string{
		"f:9:16: services[0].lifetimes: found \"1h\", expected a mapping",
	}},
	{"an unknown lifetime", valid, with("lifetimes: {closed: 30s}"), []string{
		"f:9:17: services[0].lifetimes: found unknown field \"closed\", expected one of new, established, closing",
	}},
	{"weight negative", valid, weighing(valid, 100, -1), []string{
		"f:14:17: services[0].backends[1].weight: found -1, expected a number from 0 to 65535",
	}},
	{"weight too high", valid, weighing(valid, 65536, 0), []string{
		"f:11:17: services[0].backends[0].weight: found 65536, expected a number from 0 to 65535",
	}},
	{"weight a fraction", valid, weighing(valid, 0.5, 1), []string{
		"f:11:17: services[0].backends[0].weight: found 0.5, expected a number from 0 to 65535",
	}},
	{"weight quoted", valid, weighing(valid, "'5'", 1), []string{
		"f:11:17: services[0].backends[0].weight: found \"5\", expected a number from 0 to 65535 (without quotes)",
	}},
}

// backends is a file with further fields of its service, and n backends from line 11 on.
func backends(fields string, n int) string {
	head, _, _ := strings.Cut(with(fields), "      - name: a")
	var b strings.Builder
	b.WriteString(head)
	for i := range n {
		fmt.Fprintf(&b, "      - {name: b%d, address: 10.%d.%d.%d}\n", i, 1+i>>16, i>>8&255, i&255)
	}
	return b.String()
}

func TestFlowWarnings(t *testing.T) {
	group := func(file string) string { // line 1 is the group's
		return "group: {peers: 3, seed_file: /etc/sluice/group.key}\n" + file
	}
	for _, row := range []struct {
		name string
		file string
		want []string
	}{
		{"maglev in a group", group(valid), nil},
		{"source in a group", group(with("scheduler: source")), nil},
		{"wrr alone", with("scheduler: wrr"), nil},
		{"wrr in a group", group(with("scheduler: wrr")), []string{
			"f:10:16: services[0].scheduler: wrr with 3 peers: a flow that a router moves to another node may reach another backend there",
		}},
		{"least-conn in a group", group(with("scheduler: least-conn")), []string{
			"f:10:16: services[0].scheduler: least-conn with 3 peers: a flow that a router moves to another node may reach another backend there",
		}},
		{"p2c in a group", group(with("scheduler: p2c")), []string{
			"f:10:16: services[0].scheduler: p2c with 3 peers: another node, to which a router moves a flow, takes the first of its two candidates, which may not be the one that has it",
		}},
		{"one of two services in a group", group(valid + strings.Replace(second, "forward: ipip\n", "forward: ipip\n    scheduler: wrr\n", 1)), []string{
			"f:20:16: services[1].scheduler: wrr with 3 peers: a flow that a router moves to another node may reach another backend there",
		}},
		{"UDP without a flow table", udp(with("flow_table: off")), nil},
		{"TCP without a flow table", with("flow_table: off"), []string{
			"f:9:17: services[0].flow_table: off with tcp: each packet goes by its hash alone, so that connections break when the backends of the service change",
		}},
		{"established flows live shorter", with("lifetimes: {new: 10m, established: 5m}"), []string{
			"f:9:40: services[0].lifetimes.established: 5m for established flows and 10m for new ones: a flow lives shorter once it has proved to be one",
		}},
		{"established flows live shorter, by default", udp(with("lifetimes: {new: 2h}")), []string{
			"f:9:16: services[0].lifetimes.established: 2m for established flows and 2h for new ones: a flow lives shorter once it has proved to be one",
		}},
		{"alike", with("lifetimes: {new: 5s, established: 5s}"), nil},
		{"a hundred entries each", backends("table_size: 25219", 252), nil},
		{"655 backends", backends("", 655), nil},
		{"656 backends", backends("", 656), []string{
			"f:11:7: services[0].backends: 656 backends share a lookup table of 65537 entries, so that their shares differ by more than a hundredth; table_size: 65609 gives each of them 100",
		}},
		{"656 backends, a large table", backends("table_size: 655373", 656), nil},
		{"three backends too many", backends("table_size: 251", 3), []string{
			"f:11:7: services[0].backends: 3 backends share a lookup table of 251 entries, so that their shares differ by more than a hundredth; table_size: 307 gives each of them 100",
		}},
		{"a backend of weight 0", weighing(valid, 0, 1), nil},
		{"all weights 0", weighing(valid, 0, 0), []string{
			"f:10:7: services[0].backends: all weights are 0, so that the service takes no new flow",
		}},
		{"a weight that just counts", weighing(valid, 6552, 1), nil},
		{"a weight too small", weighing(valid, 1, 6553), []string{
			"f:11:17: services[0].backends[0].weight: 1 of 6554 in all is 9.9 of the lookup table's 65537 entries: the backend's share may be off by more than a tenth",
		}},
		{"a weight of a single entry", weighing(valid, 65535, 1), []string{
			"f:14:17: services[0].backends[1].weight: 1 of 65536 in all is 1.0 of the lookup table's 65537 entries: the backend's share may be off by more than a tenth",
		}},
		// A table that is too small for the number of backends is said to be that, and no more.
		{"too small in both respects", strings.Replace(backends("table_size: 251", 3), "address: 10.1.0.0}", "address: 10.1.0.0, weight: 1}", 1), []string{
			"f:11:7: services[0].backends: 3 backends share a lookup table of 251 entries, so that their shares differ by more than a hundredth; table_size: 307 gives each of them 100",
		}},
	} {
		t.Run(row.name, func(t *testing.T) { checkWarnings(t, row.file, row.want) })
	}
}

// checkWarnings parses a file, which is good, and compares what it is warned of.
func checkWarnings(t *testing.T, file string, want []string) {
	t.Helper()
	_, list, err := Parse("f", []byte(file))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range list {
		got = append(got, w.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Weights and tables of which nothing is known, since they were refused, are not warned of.
func TestNoWarningAfterRefusal(t *testing.T) {
	for _, file := range []string{weighing(valid, -1, 0), with("table_size: 252"), backends("table_size: 6", 700)} {
		if _, list, err := Parse("f", []byte(file)); err == nil || len(list) != 0 {
			t.Errorf("got the error %v and the warnings %v, want an error only", err, list)
		}
	}
}

// What a service says about its flows, with all that it leaves out, is also what the canonical form says.
func TestFlowFields(t *testing.T) {
	tcp := Service{Scheduler: SchedulerMaglev, TableSize: 65537, OnDown: DownKeep, FlowTable: true,
		Lifetimes: Lifetimes{2 * time.Hour, 2 * time.Hour, 30 * time.Second}}
	udpDefaults := tcp
	udpDefaults.OnDown, udpDefaults.Lifetimes = DownRehash, Lifetimes{30 * time.Second, 2 * time.Minute, 0}
	wordless := udpDefaults
	wordless.FlowTable, wordless.Lifetimes = false, Lifetimes{}
	ipv6 := func(file string) string { return strings.Replace(file, "192.0.2.10", "2001:db8::10", 1) }
	but := func(s Service, change func(*Service)) Service { change(&s); return s }
	for _, row := range []struct {
		file string
		want Service
	}{
		{valid, tcp},
		{udp(valid), udpDefaults},
		{with("scheduler: maglev"), tcp},
		{with("scheduler: wrr"), but(tcp, func(s *Service) { s.Scheduler = SchedulerWRR })},
		{with("scheduler: least-conn"), but(tcp, func(s *Service) { s.Scheduler = SchedulerLeastConn })},
		{udp(with("scheduler: p2c")), but(udpDefaults, func(s *Service) { s.Scheduler = SchedulerP2C })},
		{with("scheduler: source"), but(tcp, func(s *Service) { s.Scheduler, s.SourcePrefix = SchedulerSource, 32 })},
		{with("scheduler: source\n    source_prefix: 1"), but(tcp, func(s *Service) { s.Scheduler, s.SourcePrefix = SchedulerSource, 1 })},
		{ipv6(with("scheduler: source")), but(tcp, func(s *Service) { s.Scheduler, s.SourcePrefix = SchedulerSource, 64 })},
		{ipv6(with("scheduler: source\n    source_prefix: 128")), but(tcp, func(s *Service) { s.Scheduler, s.SourcePrefix = SchedulerSource, 128 })},
		{with("table_size: 251"), but(tcp, func(s *Service) { s.TableSize = 251 })},
		{with("table_size: 16777213"), but(tcp, func(s *Service) { s.TableSize = 16777213 })},
		{with("slow_start: 1h"), but(tcp, func(s *Service) { s.SlowStart = time.Hour })},
		{with("on_down: rehash"), but(tcp, func(s *Service) { s.OnDown = DownRehash })},
		{with("on_down: reset"), but(tcp, func(s *Service) { s.OnDown = DownReset })},
		{udp(with("on_down: keep")), but(udpDefaults, func(s *Service) { s.OnDown = DownKeep })},
		{with("flow_table: on"), tcp},
		{with("flow_table: 'on'"), tcp},
		{with("flow_table: true"), tcp},
		{udp(with("flow_table: off")), wordless},
		{udp(with("flow_table: false")), wordless},
		{udp(with("flow_table: off\n    on_down: rehash")), wordless},
		{with("flow_table: off"), wordless},
		{udp(with("flow_table: off\n    scheduler: source")), but(wordless, func(s *Service) { s.Scheduler, s.SourcePrefix = SchedulerSource, 32 })},
		{with("lifetimes: {}"), tcp},
		{with("lifetimes: {new: 5s}"), but(tcp, func(s *Service) { s.Lifetimes.New = 5 * time.Second })},
		{with("lifetimes: {established: 2h, closing: 2h}"), but(tcp, func(s *Service) { s.Lifetimes.Closing = 2 * time.Hour })},
		{with("lifetimes: {established: 10m}"), but(tcp, func(s *Service) { s.Lifetimes.New, s.Lifetimes.Established = 10*time.Minute, 10*time.Minute })},
		{udp(with("lifetimes: {established: 1h}")), but(udpDefaults, func(s *Service) { s.Lifetimes.Established = time.Hour })},
	} {
		c, _, err := Parse("f", []byte(row.file))
		if err != nil {
			t.Errorf("%s\n%v", row.file, err)
			continue
		}
		s := c.Services[0]
		got := Service{Scheduler: s.Scheduler, SourcePrefix: s.SourcePrefix, TableSize: s.TableSize, SlowStart: s.SlowStart,
			OnDown: s.OnDown, FlowTable: s.FlowTable, Lifetimes: s.Lifetimes}
		if !reflect.DeepEqual(got, row.want) {
			t.Errorf("%s\ngot  %+v\nwant %+v", row.file, got, row.want)
		}
		if again, _, err := Parse("f", c.Canonical()); err != nil || !reflect.DeepEqual(c, again) {
			t.Errorf("the canonical form: %v\n%s", err, c.Canonical())
		}
	}
}

// Each field is part of what the hash names.
func TestFlowFieldsChangeTheHash(t *testing.T) {
	hashes := make(map[string]string)
	for _, file := range []string{valid, with("scheduler: wrr"), with("scheduler: source"), with("scheduler: source\n    source_prefix: 24"), with("table_size: 655373"),
		with("slow_start: 1s"), with("on_down: reset"), with("flow_table: off"), with("lifetimes: {new: 61s}"), with("lifetimes: {established: 1h}"),
		with("lifetimes: {closing: 31s}"), weighing(valid, 100, 99), weighing(valid, 0, 100)} {
		c, _, err := Parse("f", []byte(file))
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := hashes[c.Hash()]; ok {
			t.Errorf("one hash for\n%s\n%s", file, other)
		}
		hashes[c.Hash()] = file
	}
}

func TestWeights(t *testing.T) {
	for _, row := range [][2]int{{0, 1}, {1, 1}, {100, 65535}, {0, 0}} {
		c, _, err := Parse("f", []byte(weighing(valid, row[0], row[1])))
		if err != nil {
			t.Fatal(err)
		}
		b := c.Services[0].Backends
		if b[0].Weight != row[0] || b[1].Weight != row[1] {
			t.Errorf("got %d and %d, want %v", b[0].Weight, b[1].Weight, row)
		}
		// A weight of 0 is not left out of the canonical form, where it would come to be the default.
		again, _, err := Parse("f", c.Canonical())
		if err != nil || !reflect.DeepEqual(c, again) || strings.Count(string(c.Canonical()), "weight: "+strconv.Itoa(row[0])+"\n") == 0 {
			t.Errorf("the canonical form: %v\n%s", err, c.Canonical())
		}
	}
}

// One server may be a backend of several services of a VIP, and of several VIPs, each with weights and flows of its own.
func TestSameAddressInTwoServices(t *testing.T) {
	for _, forward := range []Forward{ForwardL2, ForwardIPIP, ForwardGUE} {
		file := strings.ReplaceAll(valid+second+strings.NewReplacer("other", "third", "192.0.2.10", "192.0.2.11", "10.0.0.1}", "10.0.0.1, weight: 0}").Replace(second),
			"ipip", string(forward))
		c, _, err := Parse("f", []byte(file))
		if err != nil {
			t.Errorf("%s: %v", forward, err)
			continue
		}
		for i, weight := range []int{100, 100, 0} {
			if b := c.Services[i].Backends[0]; b.Address.String() != "10.0.0.1" || b.Weight != weight {
				t.Errorf("%s: service %d has %+v", forward, i, b)
			}
		}
	}
}
