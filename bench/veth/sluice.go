//go:build linux

package veth

import (
	"context"
	"errors"
	"os"
	"text/template"
	"time"

	"github.com/sluice-lb/sluice/testenv"
)

// sluice is the daemon with workers alone, fastPath as users run it.
var (
	sluice = &System{
		Name: "sluice",
		what: "this program's daemon: one UDP service, four backends, Maglev, a word for each flow, IPIP; without its fast path",
		peer: "testpmd",
		start: func(_ context.Context, r *Rig) (func() error, error) {
			return r.startSluice("off")
		},
	}
	fastPath = &System{
		Name: "sluice-fastpath",
		what: "the same, with packets of known flows forwarded by its XDP program, on the first core",
		peer: "reflect",
		start: func(_ context.Context, r *Rig) (func() error, error) {
			return r.startSluice("on")
		},
	}
)

var sluiceConfig = template.Must(template.New("config").Parse(`node: lb1
state_dir: {{printf "%q" .State}}
control: {socket: {{printf "%q" .Socket}}}
interfaces: [{name: eth0, mode: auto, fast_path: {{.FastPath}}, queues: all}]
cpus: "{{.CPU}}"
flows: {{.Flows}}
drain_time: 0s
without_daemon: {for: 0s}
metrics: {listen: 127.0.0.1:9545}
services:
  - name: bench
    vip: {{.VIP}}
    protocol: udp
    ports: {{.Port}}
    forward: ipip
    backends:
      {{- range $i, $a := .Backends}}
      - {name: b{{$i}}, address: {{$a}}}
      {{- end}}
`))

func (r *Rig) startSluice(fastPath string) (stop func() error, err error) {
	config := r.path("lb1.yaml")
	f, err := os.Create(config)
	if err != nil {
		return nil, err
	}
	err = sluiceConfig.Execute(f, map[string]any{
		"FastPath": fastPath, "State": r.path("state"), "Socket": r.path("lb1.sock"), "CPU": r.cores.system, "Flows": r.room(),
		"VIP": vip, "Port": port, "Backends": backendList(),
	})
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	p, err := r.start(testenv.Cmd{Path: r.program, Args: []string{"run", "--config", config}})
	if err != nil {
		return nil, err
	}
	if err := p.WaitOutput(10*time.Second, "forwarding"); err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return stopper(p), nil
}
