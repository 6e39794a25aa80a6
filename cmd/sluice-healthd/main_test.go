package main

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// output may be read while the command writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func TestRunNotifiesAndEnds(t *testing.T) {
	dir := t.TempDir()
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	told := func() string {
		t.Helper()
		b := make([]byte, 256)
		if err := systemd.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := systemd.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}

	c := command()
	out := &output{}
	c.SetErr(out)
	c.SetArgs([]string{"run", "--socket", filepath.Join(dir, "none.sock"), "--name", "lb7"})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- c.ExecuteContext(ctx) }()
	if got := told(); got != daemon.SdNotifyReady {
		t.Errorf("systemd was told %q first", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if got := told(); got != daemon.SdNotifyStopping {
		t.Errorf("systemd was told %q at the end", got)
	}
	if !strings.Contains(out.String(), "name=lb7") {
		t.Errorf("log:\n%s", out)
	}
}

func TestArguments(t *testing.T) {
	for _, c := range []struct {
		args   string
		wanted string // in the error; empty: none
	}{
		{"version", ""},
		{"run extra", "extra"},
		{"run --log-level loud", "give debug, info, warn or error"},
		{"run --log-format xml", "give text or json"},
		{"run --interval 3s", "unknown flag"},
	} {
		cmd := command()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs(strings.Fields(c.args))
		err := cmd.Execute()
		switch {
		case c.wanted == "" && err != nil:
			t.Errorf("%s: %v", c.args, err)
		case c.wanted != "" && (err == nil || !strings.Contains(err.Error(), c.wanted)):
			t.Errorf("%s: error %v, want one with %q", c.args, err, c.wanted)
		}
	}
}
