package unpack

import (
	"archive/tar"
	"errors"
	"io"
)

// pieceHeaders is how many bytes of headers end a piece: some thousand entries. Tests make it less.
var pieceHeaders int64 = 1 << 20

// maxHeld is the largest header that a piece can begin with.
const maxHeld = 4 << 20

// errPiece ends the writer's work on a piece.
var errPiece = errors.New("end of a piece")

// pieces gives a tar to the writer in pieces, because the writer remembers all entries that it has seen. A piece ends between
// two entries, when the filter returns errPiece for the second, whose header has been read then, and is read again by the
// next piece. It is as good as a tar of its own: tar.Reader knows nothing of earlier entries, and it reads no further than it
// needs.
type pieces struct {
	r       io.Reader
	pos     int64  // how far the tar has been read
	next    int64  // where the header of the entry after the one at hand begins; unknown if negative
	headers int64  // bytes of headers in this piece
	full    bool   // it ends at the next entry that a piece can begin with
	held    []byte // what has been read behind next, if the piece is full
	again   []byte // what is read again
}

// Read implements io.Reader.
func (p *pieces) Read(b []byte) (n int, err error) {
	if len(p.again) > 0 {
		n = copy(b, p.again)
		p.again = p.again[n:]
	} else {
		n, err = p.r.Read(b)
	}
	end := p.pos + int64(n)
	if p.full && p.next >= 0 && end > p.next {
		p.held = append(p.held, b[max(0, p.next-p.pos):n]...)
		if len(p.held) > maxHeld {
			p.next, p.held = -1, nil
		}
	}
	p.pos = end
	return n, err
}

// cut says whether the piece ends before the entry whose header has just been read. If it does not, this notes where the entry
// ends, as tar.Reader sees it.
func (p *pieces) cut(hdr *tar.Header) bool {
	if p.full && len(p.held) > 0 {
		return true
	}
	p.headers += blockSize
	if p.next >= 0 {
		p.headers += p.pos - p.next - blockSize
	}
	p.full, p.held = p.headers >= pieceHeaders, nil
	switch hdr.Typeflag {
	case tar.TypeReg:
		if isSparse(hdr) {
			p.next = -1
			return false
		}
		p.next = p.pos + (hdr.Size+blockSize-1)/blockSize*blockSize
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		p.next = p.pos // whatever its size says
	case tar.TypeDir:
		if p.next = p.pos; hdr.Size > 0 {
			p.next = -1 // it may be a file to the reader, with a name that ends as a directory's
		}
	default:
		p.next = -1
	}
	return false
}

// blockSize is what a tar is made of.
const blockSize = 512

// begin begins the next piece.
func (p *pieces) begin() {
	p.again, p.pos = append(p.held, p.again...), p.next
	p.next, p.held, p.headers, p.full = p.pos, nil, 0, false
}
