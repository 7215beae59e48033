package layertar

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"path/filepath"

	"github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/storage"
)

// maxTrailer is what may follow a tar's end and still be kept: it is padding to some block size.
const maxTrailer = 16 << 20

const (
	// maxHeader is what the header of one entry may have, with its extensions, to be kept. The library has it in memory,
	// and tars may have any number of extensions of any size before an entry.
	maxHeader = 4 << 20
	// maxName is how long a name may be: PATH_MAX.
	maxName = 4096
)

// disassemble packs all of a tar but the content of its files, of which it packs checksums. It is asm.NewInputTarStream of
// tar-split for a reader that somebody else drives, and with the header at hand that says what is not exact.
func disassemble(r *queueReader, w io.Writer) error {
	d := disassembler{packed: json.NewEncoder(w), names: newNames(), buf: make([]byte, blockSize)}
	tr := tar.NewReader(r)
	tr.RawAccounting = true
	for {
		r.limit = r.read + maxHeader
		hdr, err := tr.Next()
		r.limit = 0
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: read tar: %w", ErrNotExact, err)
		}
		if err := d.entry(hdr, tr); err != nil {
			return err
		}
	}
	if err := d.segment(tr.RawBytes()); err != nil { // the zeros of the end
		return err
	}
	if err := d.trailer(r); err != nil {
		return err
	}
	if d.kept != r.read { // the library leaves a piece out when the tar ends in the middle of a block
		return fmt.Errorf("%w: it does not end as a tar does", ErrNotExact)
	}
	return nil
}

type disassembler struct {
	packed *json.Encoder // of storage.Entry, as storage.NewJSONPacker writes it, which remembers all names besides
	count  int
	names  names
	buf    []byte
	kept   int64 // bytes of the tar that have been packed, or are the content of a file
}

func (d *disassembler) entry(hdr *tar.Header, tr *tar.Reader) error {
	if err := d.names.add(hdr); err != nil {
		return fmt.Errorf("entry %.256q: %w", hdr.Name, err)
	}
	if err := d.segment(tr.RawBytes()); err != nil {
		return err
	}
	entry := storage.Entry{Type: storage.FileType}
	entry.SetName(hdr.Name)
	if hasContent(hdr) {
		sum := newSum()
		n, err := io.CopyBuffer(sum, struct{ io.Reader }{tr}, d.buf)
		if err != nil {
			return fmt.Errorf("%w: entry %.256q: %w", ErrNotExact, hdr.Name, err)
		}
		entry.Size, entry.Payload = n, sum.Sum(nil)
		d.kept += n
	}
	return d.pack(entry)
}

func (d *disassembler) segment(raw []byte) error {
	if len(raw) == 0 {
		return nil
	}
	d.kept += int64(len(raw))
	return d.pack(storage.Entry{Type: storage.SegmentType, Payload: raw})
}

func (d *disassembler) trailer(r io.Reader) error {
	for total := 0; ; {
		n, err := io.ReadFull(r, d.buf)
		if total += n; total > maxTrailer {
			return fmt.Errorf("%w: more than %d bytes follow its end", ErrNotExact, maxTrailer)
		}
		if err := d.segment(d.buf[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read to the end of the tar: %w", err)
		}
	}
}

func (d *disassembler) pack(entry storage.Entry) error {
	entry.Position = d.count
	d.count++
	if err := d.packed.Encode(entry); err != nil {
		return fmt.Errorf("write tar metadata: %w", err)
	}
	return nil
}

// hasContent says whether content follows the header. Others may have a size too, that of what a hard link leads to.
func hasContent(hdr *tar.Header) bool {
	return hdr.Size > 0 && hdr.Typeflag == tar.TypeReg
}

// kind is what the entries of a tar make of a name.
type kind uint8

const (
	implied   kind = iota + 1 // a directory that has names below it and no entry
	directory                 // one that has an entry
	other                     // anything else; a whiteout has the name of its entry
)

// names are those that a tar has had so far, in clean form, to notice when one stands for the place of another. It is
// no use that most of such tars could be rebuilt: they are few, and their blobs can be kept. For the same reason hashes
// do for the names, of which a tar may have any amount.
type names struct {
	seed  maphash.Seed
	kinds map[uint64]kind
}

func newNames() names {
	return names{seed: maphash.MakeSeed(), kinds: map[uint64]kind{}}
}

func (s names) get(name string) (kind, bool) {
	k, ok := s.kinds[maphash.String(s.seed, name)]
	return k, ok
}

func (s names) set(name string, k kind) {
	s.kinds[maphash.String(s.seed, name)] = k
}

// add returns ErrNotExact if the content of this entry, or of one before, will not be found by its name.
func (s names) add(hdr *tar.Header) error {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	case tar.TypeXGlobalHeader:
		return s.addApart(hdr.Name)
	default: // also sparse files
		return fmt.Errorf("%w: its type is %q", ErrNotExact, hdr.Typeflag)
	}
	for _, record := range []string{"GNU.sparse.major", "GNU.sparse.map"} {
		if hdr.PAXRecords[record] != "" {
			return fmt.Errorf("%w: it is a sparse file", ErrNotExact)
		}
	}
	if len(hdr.Name) > maxName || len(hdr.Linkname) > maxName {
		return fmt.Errorf("%w: its name has more than %d bytes", ErrNotExact, maxName)
	}
	name := clean(hdr.Name)
	if (name == "" || isWhiteout(name) || isMeta(name)) && hasContent(hdr) {
		return fmt.Errorf("%w: its content is not unpacked", ErrNotExact)
	}
	if name == "" {
		return s.addApart(hdr.Name)
	}
	if err := s.addParents(name); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeLink {
		if err := s.addParents(clean(hdr.Linkname)); err != nil {
			return fmt.Errorf("hard link to %.256q: %w", hdr.Linkname, err)
		}
	}
	was, known := s.get(name)
	switch {
	case known && was != implied:
		return fmt.Errorf("%w: its name occurs twice", ErrNotExact)
	case known && hdr.Typeflag != tar.TypeDir:
		return fmt.Errorf("%w: it replaces a directory", ErrNotExact)
	case hdr.Typeflag == tar.TypeDir:
		s.set(name, directory)
	default:
		s.set(name, other)
	}
	return nil
}

// addApart adds the name of an entry that nothing is unpacked of, which may not occur twice either (storage.ErrDuplicatePath).
func (s names) addApart(name string) error {
	apart := "/" + filepath.Clean(name) // other names begin with no slash
	if _, known := s.get(apart); known {
		return fmt.Errorf("%w: its name occurs twice", ErrNotExact)
	}
	s.set(apart, other)
	return nil
}

func (s names) addParents(name string) error {
	for dir := parent(name); dir != ""; dir = parent(dir) {
		switch was, _ := s.get(dir); was {
		case other:
			return fmt.Errorf("%w: %.256q is no directory", ErrNotExact, dir)
		case implied, directory:
			return nil // and so are those above
		}
		s.set(dir, implied)
	}
	return nil
}
