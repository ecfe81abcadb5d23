import edu.anu.spice.Annotator;
import edu.anu.spice.Evaluation;
import edu.anu.spice.SceneGraph;
import edu.anu.spice.SpiceParser;
import edu.anu.spice.TupleSet;
import edu.stanford.nlp.pipeline.StanfordCoreNLP;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStreamWriter;
import java.io.PrintStream;
import java.io.Writer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import org.json.simple.JSONArray;
import org.json.simple.JSONObject;
import org.json.simple.JSONValue;

/**
 * SPICE of captions, by the classes of spice-1.0.jar and in the order of its SpiceScorer. That one cannot run on
 * Java 15 or later, where its output needs the JavaScript that Java no longer has, and its cache is a native library
 * for three kinds of machine.
 *
 * <p>Reads {"images": [[caption, reference, ...], ...], "parses": {text: tuples}} from the standard input, parses the
 * texts that are not in "parses", and prints {"scores": [F of each image], "parses": {text: tuples} of the new ones}.
 * The one argument is the number of threads that parse.
 *
 * <p>Compiled by: javac --release 8 -cp spice-1.0.jar:stanford-corenlp-3.6.0.jar:json-simple-1.1.1.jar SpiceScores.java
 */
public class SpiceScores extends SpiceParser {
    private final int threads;
    private final Map<String, ArrayList<ArrayList<String>>> parses;
    private final Map<String, ArrayList<ArrayList<String>>> newParses = new HashMap<>();

    private SpiceScores(int threads, Map<String, ArrayList<ArrayList<String>>> parses) {
        super(null, threads, true);
        this.threads = threads;
        this.parses = parses;
    }

    @Override
    protected Map<String, ArrayList<ArrayList<String>>> loadTuples(List<String> texts) {
        Set<String> unknown = new LinkedHashSet<>(texts);
        unknown.removeAll(parses.keySet());
        if (!unknown.isEmpty()) {
            annotator = new Parser(threads);
            newParses.putAll(generateTuples(new ArrayList<>(unknown)));
            parses.putAll(newParses);
        }
        return parses;
    }

    /** As SPICE sets it up, but without the recognition of named entities, which nothing in SPICE looks at. */
    private static class Parser extends Annotator {
        Parser(int threads) {
            super(threads, 1000);
            Properties properties = new Properties();
            properties.setProperty("annotators", "tokenize,ssplit,parse,lemma");
            properties.setProperty("depparse.extradependencies", "MAXIMAL");
            properties.setProperty("threads", Integer.toString(threads));
            pipeline = new StanfordCoreNLP(properties);
        }
    }

    @SuppressWarnings("unchecked") // json-simple knows no element types
    public static void main(String[] arguments) throws IOException {
        PrintStream output = System.out;
        System.setOut(System.err); // nothing but the result goes to the standard output
        JSONObject input = (JSONObject) JSONValue.parse(new InputStreamReader(System.in, "UTF-8"));
        SpiceScores parser =
                new SpiceScores(
                        Integer.parseInt(arguments[0]),
                        (Map<String, ArrayList<ArrayList<String>>>) input.get("parses"));
        List<String> captions = new ArrayList<>();
        List<String> references = new ArrayList<>();
        List<Integer> referencesOfImage = new ArrayList<>();
        for (List<String> image : (List<List<String>>) input.get("images")) {
            captions.add(image.get(0));
            references.addAll(image.subList(1, image.size()));
            referencesOfImage.add(image.size() - 1);
        }
        List<SceneGraph> referenceGraphs = parser.parseCaptions(references, referencesOfImage);
        List<SceneGraph> captionGraphs = parser.parseCaptions(captions);
        JSONArray scores = new JSONArray();
        for (int i = 0; i < captions.size(); i++) {
            TupleSet ofCaption = new TupleSet(captionGraphs.get(i));
            TupleSet ofReferences = new TupleSet(referenceGraphs.get(i));
            scores.add(new Evaluation(ofCaption, ofReferences, false, true).f);
        }
        JSONObject result = new JSONObject();
        result.put("scores", scores);
        result.put("parses", parser.newParses);
        try (Writer writer = new OutputStreamWriter(output, "UTF-8")) {
            result.writeJSONString(writer);
        }
    }
}
