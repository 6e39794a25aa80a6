//go:build linux

package guest

import (
	"strings"
	"testing"
)

// Numbers in names of packages are compared as numbers: 6.18.9 is older than 6.18.15.
func TestNewest(t *testing.T) {
	names := []string{"linux-image-6.18.9+deb13-cloud-amd64", "linux-image-6.18.15+deb13-cloud-amd64", "linux-image-6.19.1+deb13-cloud-amd64"}
	got, err := newest(names, `linux-image-6\.18\.\d+\+deb\d+-cloud-amd64`)
	if err != nil || got != names[1] {
		t.Errorf("got %s, %v; expected %s", got, err, names[1])
	}
	if got, err := newest(names, `linux-image-6\.18`); err == nil {
		t.Errorf("a part of a name matched: %s", got)
	}
}

func TestSource(t *testing.T) {
	for text, want := range map[string][2]string{
		"Types: deb\n# http://comment.invalid\nURIs: http://a.invalid/debian\nSigned-By: /k.gpg\n\nURIs: http://b.invalid\n": {"http://a.invalid/debian", "/k.gpg"},
		"# deb http://comment.invalid suite main\ndeb cdrom:[Debian]/ suite main\ndeb http://a.invalid suite main\n":         {"http://a.invalid", archiveKey},
		"deb [ arch=amd64 signed-by=/k.gpg ] http://a.invalid suite main\n":                                                  {"http://a.invalid", "/k.gpg"},
		"deb [signed-by=/k.gpg] http://a.invalid suite main\n":                                                               {"http://a.invalid", "/k.gpg"},
	} {
		uri, key, err := source([]byte(text))
		if err != nil || uri != want[0] || key != want[1] {
			t.Errorf("%q: got %q, %q, %v", text, uri, key, err)
		}
	}
	if _, _, err := source([]byte("deb-src http://a.invalid suite main\n")); err == nil {
		t.Error("a source of sources was taken")
	}
}

// Every entry of the archive begins at a multiple of four, with its directory before it.
func TestArchive(t *testing.T) {
	a := string(archive([]string{"proc"}, []file{{"lib/modules/000-a.ko", []byte("12345")}, {"init", []byte("x")}}))
	last := 0
	for _, name := range []string{"proc", "lib", "lib/modules", "lib/modules/000-a.ko", "init", "TRAILER!!!"} {
		at := strings.Index(a, name+"\x00") - 110 // bytes of a header
		if at < last || at%4 != 0 || a[at:at+6] != "070701" {
			t.Errorf("entry %s is at %d, after %d", name, at, last)
		}
		last = at
	}
	if len(a)%4 != 0 {
		t.Errorf("%d bytes", len(a))
	}
}
