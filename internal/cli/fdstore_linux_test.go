package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// childEnv makes the test binary the service that systemd starts.
const childEnv = "SLUICE_TEST_INHERIT"

// childReport is what the service says about itself.
type childReport struct {
	FDs      map[string][]int  // as InheritedFDs returned them
	Contents map[string]string // of the first file of each name, read from its beginning
	Left     []string          // LISTEN_ variables that are still set
	Leaked   []int             // descriptors that a program started now would inherit
	Again    int               // names that a second call returned
}

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := json.NewEncoder(os.Stdout).Encode(report()); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func report() childReport {
	r := childReport{FDs: InheritedFDs(), Contents: map[string]string{}, Again: len(InheritedFDs())}
	for name, fds := range r.FDs {
		var b [64]byte
		if n, err := unix.Pread(fds[0], b[:], 0); err == nil {
			r.Contents[name] = string(b[:n])
		}
	}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "LISTEN_") {
			r.Left = append(r.Left, v)
		}
	}
	for fd := 3; fd < 20; fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			r.Leaked = append(r.Leaked, fd)
		}
	}
	return r
}

// service starts the test binary as systemd starts a service, with files as descriptors 3 and up, and returns what it
// reports. pid is a shell word, $$ for its own number; variables are the others.
func service(t *testing.T, pid string, files []*os.File, variables ...string) childReport {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Only the process itself knows its number before it runs.
	cmd := exec.Command("sh", "-c", "export LISTEN_PID="+pid+"; exec \"$0\"", program)
	// The race detector would have it wait for a second at its end.
	cmd.Env = append(append(os.Environ(), childEnv+"=1", "GORACE=atexit_sleep_ms=0"), variables...)
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the service: %v, %q", err, out)
	}
	var r childReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	if len(r.Left) > 0 || r.Again != 0 {
		t.Errorf("still set: %q; a second call returned %d names", r.Left, r.Again)
	}
	return r
}

// tempFile is an open file without a name that holds text.
func tempFile(t *testing.T, text string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := io.WriteString(f, text); err != nil {
		t.Fatal(err)
	}
	return f
}

// manager listens where systemd would, and says so in the environment.
func manager(t *testing.T, address string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", address)
	return conn
}

// receive returns the next message to the manager with the descriptors that came with it.
func receive(t *testing.T, conn *net.UnixConn) (string, []int) {
	t.Helper()
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(16*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		t.Fatalf("receive: %v, flags %#x", err, flags)
	}
	var fds []int
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		rights, err := unix.ParseUnixRights(&m)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, rights...)
	}
	return string(b[:n]), fds
}

// What one run stores the next one inherits.
func TestFDStore(t *testing.T) {
	for name, address := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify"),
		"abstract": fmt.Sprintf("@sluice-test-notify-%d", os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			systemd := manager(t, address)
			var kept []*os.File
			var names []string
			for _, stored := range []string{"flows", "Table-2"} {
				f := tempFile(t, "contents of "+stored)
				if err := StoreFD(stored, int(f.Fd())); err != nil {
					t.Fatal(err)
				}
				message, fds := receive(t, systemd)
				if want := "FDSTORE=1\nFDNAME=" + stored + "\nFDPOLL=0"; message != want || len(fds) != 1 {
					t.Fatalf("%q with %d descriptors, want %q with one", message, len(fds), want)
				}
				file := os.NewFile(uintptr(fds[0]), stored)
				defer file.Close()
				kept, names = append(kept, file), append(names, stored)
				// The caller's own is still open.
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			}

			r := service(t, "$$", kept, "LISTEN_FDS=2", "LISTEN_FDNAMES="+strings.Join(names, ":"))
			if len(r.FDs) != 2 || !slices.Equal(r.FDs["flows"], []int{3}) || !slices.Equal(r.FDs["Table-2"], []int{4}) {
				t.Errorf("inherited %v", r.FDs)
			}
			if r.Contents["flows"] != "contents of flows" || r.Contents["Table-2"] != "contents of Table-2" {
				t.Errorf("inherited %q", r.Contents)
			}
			if slices.Contains(r.Leaked, 3) || slices.Contains(r.Leaked, 4) {
				t.Errorf("programs that the service starts inherit %v", r.Leaked)
			}

			if err := RemoveFD("flows"); err != nil {
				t.Fatal(err)
			}
			if message, fds := receive(t, systemd); message != "FDSTOREREMOVE=1\nFDNAME=flows" || len(fds) != 0 {
				t.Errorf("%q with %d descriptors", message, len(fds))
			}
		})
	}
}

func TestInheritedFDs(t *testing.T) {
	files := []*os.File{tempFile(t, "a"), tempFile(t, "b"), tempFile(t, "c")}
	for _, c := range []struct {
		name, pid string
		variables []string
		want      map[string][]int
	}{
		{"several of a name", "$$", []string{"LISTEN_FDS=3", "LISTEN_FDNAMES=x:y:x"}, map[string][]int{"x": {3, 5}, "y": {4}}},
		{"no names", "$$", []string{"LISTEN_FDS=2"}, map[string][]int{"unknown": {3, 4}}},
		{"too few names", "$$", []string{"LISTEN_FDS=3", "LISTEN_FDNAMES=:x"}, map[string][]int{"unknown": {3, 5}, "x": {4}}},
		{"pidfd of newer versions", "$$", []string{"LISTEN_FDS=1", "LISTEN_PIDFDID=7", "LISTEN_FDNAMES=x"}, map[string][]int{"x": {3}}},
		{"for another process", "1", []string{"LISTEN_FDS=3", "LISTEN_FDNAMES=x:y:z"}, nil},
		{"no process", "''", []string{"LISTEN_FDS=3"}, nil},
		{"none", "$$", []string{"LISTEN_FDS=0"}, nil},
		{"negative", "$$", []string{"LISTEN_FDS=-1"}, nil},
		{"no number", "$$", []string{"LISTEN_FDS=many"}, nil},
		{"not set", "$$", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := service(t, c.pid, files, c.variables...)
			if !maps.EqualFunc(r.FDs, c.want, slices.Equal) {
				t.Errorf("inherited %v, want %v", r.FDs, c.want)
			}
			if r.FDs == nil {
				t.Error("the map is nil")
			}
			for name, fds := range r.FDs {
				for _, fd := range fds {
					if slices.Contains(r.Leaked, fd) {
						t.Errorf("programs that the service starts inherit %s, %d", name, fd)
					}
				}
			}
		})
	}
}

func TestFDStoreRefusals(t *testing.T) {
	f := tempFile(t, "")
	fd := int(f.Fd())
	for _, name := range []string{"", "a:b", "a b", "a\nREADY=1", "a_b", "ä", "a.b", "a\x00", strings.Repeat("x", 256)} {
		t.Setenv("NOTIFY_SOCKET", "") // also where systemd is not there: so it is noticed in tests
		if err := StoreFD(name, fd); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
			t.Errorf("store as %q: %v", name, err)
		}
		if err := RemoveFD(name); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
			t.Errorf("remove %q: %v", name, err)
		}
	}
	longest := strings.Repeat("x", 255)
	for _, run := range []func() error{
		func() error { return StoreFD(longest, fd) },
		func() error { return RemoveFD(longest) },
	} {
		t.Setenv("NOTIFY_SOCKET", "")
		if err := run(); err != nil {
			t.Errorf("without systemd: %v", err)
		}
		t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
		if err := run(); err == nil || !strings.Contains(err.Error(), longest) || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("nobody listens: %v", err)
		}
	}
	systemd := manager(t, filepath.Join(t.TempDir(), "notify"))
	if err := StoreFD("closed", 1<<20); err == nil || !strings.Contains(err.Error(), "bad file descriptor") {
		t.Errorf("a descriptor that is not open: %v", err)
	}
	// Nothing of what was refused has arrived: the next message is the next one sent.
	if err := RemoveFD("next"); err != nil {
		t.Fatal(err)
	}
	if message, _ := receive(t, systemd); !strings.HasSuffix(message, "\nFDNAME=next") {
		t.Errorf("%q arrived", message)
	}
}
